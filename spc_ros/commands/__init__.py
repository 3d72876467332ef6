# SPDX-License-Identifier: Apache-2.0
"""The commands of `spc`: each file here is one, and a folder holds commands of two words, such as `spc bench train`.

A file's docstring begins with the line that `spc` lists. Its function `run(options) -> int` returns the exit code and
takes a frozen dataclass: each field is an option, whose comment is the help text, and the docstring, one sentence and
examples, is the rest of --help. Heavy modules are imported in `run`, so that --help appears at once.
"""
