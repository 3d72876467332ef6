# SPDX-License-Identifier: Apache-2.0
"""A driver of episodes that only counts, and tasks for it."""

from __future__ import annotations

import dataclasses

from spc_core.trials.protocol import EpisodeRequest, Outcome

STEPS = 40


@dataclasses.dataclass(frozen=True)
class FakeTask:
    task_id: str
    split: str
    params: dict[str, float]


TASKS = [FakeTask("family/id/00", "id", {"mass": 1.0}), FakeTask("family/ood/01", "ood", {"mass": 2.0})]


class Counting:
    """A driver whose every episode gives STEPS transitions; behaves as ContextTracker does."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps, self.count = steps, 0
        self.requests: list[EpisodeRequest] = []

    def run(self, request: EpisodeRequest) -> Outcome:
        self.requests.append(request)
        if request.reset_context:
            self.count = 0
        if request.mode != "frozen":
            self.count += self.steps
            self.count = self.count if request.limit is None else min(self.count, request.limit)
        return Outcome(-float(request.seed), self.steps, [1.0, 2.0], self.count, "time limit", uncertainty=[0.5, 0.25])
