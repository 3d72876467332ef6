# SPDX-License-Identifier: Apache-2.0
"""`spc doctor` and `spc contract init`: what a bag holds, and whether it can be learnt from."""
