# SPDX-License-Identifier: Apache-2.0
"""`spc doctor` and `spc contract init`: the contents of a bag, and their fitness for training."""
