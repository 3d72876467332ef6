# SPDX-License-Identifier: Apache-2.0
"""The program `deploy`: context_encoder and policy in one process, with the context passed on without DDS."""

from __future__ import annotations

from spc_core.alignment.streaming import Frame
from spc_ros.node_parts.plain_node import run
from spc_ros.nodes.context_encoder import ContextEncoderNode
from spc_ros.nodes.policy import PolicyNode


class ComposedPolicy(PolicyNode):
    """A policy that gets the context from the encoder in the same process, not from the topic."""

    def __init__(self, encoder: ContextEncoderNode) -> None:
        super().__init__(subscribe_context=False)
        self._encoder = encoder
        encoder.on_context = self.take_context
        encoder.must_wait = self._is_first

    def setup(self) -> None:
        super().setup()
        if self._encoder.latest is not None:  # like a latched topic
            self.take_context(self._encoder.latest)

    def _is_first(self, t_ns: int) -> bool:
        """Whether the command of a tick is still due and does not wait for the context."""
        return self.active and not self.params.context_wait_s and self.control.last_ns < t_ns

    def _on_frames(self, frames: list[Frame]) -> None:
        super()._on_frames(frames)
        self._encoder.catch_up()


def main() -> int:
    encoders: list[ContextEncoderNode] = []

    def encoder() -> ContextEncoderNode:
        encoders.append(ContextEncoderNode(own_process=False))
        return encoders[0]

    return run(encoder, lambda: ComposedPolicy(encoders[0]))


if __name__ == "__main__":
    raise SystemExit(main())
