# SPDX-License-Identifier: Apache-2.0
"""What a robot says and obeys, as vectors: one YAML file per robot."""
