# SPDX-License-Identifier: Apache-2.0
"""Acting and adapting, one row at a time: by NumPy, by CUDA graphs of torch, or by onnxruntime."""
