# SPDX-License-Identifier: Apache-2.0
"""Is a policy any good? Judged from recordings of tasks alone, without a simulation."""
