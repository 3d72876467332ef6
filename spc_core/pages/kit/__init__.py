# SPDX-License-Identifier: Apache-2.0
"""What all pages share: HTML, the look of figures, PNG."""
