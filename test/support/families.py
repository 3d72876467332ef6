# SPDX-License-Identifier: Apache-2.0
"""Names of task families for tests."""

ARMS = ("arm_reach", "arm_payload")
WITH_EXPERT = (*ARMS, "base_drive")  # with an expert that knows each hidden parameter, and every behaviour
