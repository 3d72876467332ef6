# SPDX-License-Identifier: Apache-2.0
"""What each stage of `spc` does with its options. Heavy modules are imported where they are used."""
