# SPDX-License-Identifier: Apache-2.0
"""The program `deploy`: context_encoder and policy in one process, the context handed over without DDS."""

from __future__ import annotations

from spc_ros.nodes.context_encoder_node import ContextEncoderNode
from spc_ros.nodes.managed_node import run
from spc_ros.nodes.policy_node import PolicyNode


class ComposedPolicy(PolicyNode):
    """A policy that is told the context by the encoder beside it; it does not listen to the topic."""

    def __init__(self, encoder: ContextEncoderNode) -> None:
        super().__init__(hears_context=False)
        self._encoder = encoder
        encoder.on_context = self.take_context

    def setup(self) -> None:
        super().setup()
        if self._encoder.latest is not None:  # as a latched topic would
            self.take_context(self._encoder.latest)


def main() -> int:
    encoders: list[ContextEncoderNode] = []

    def encoder() -> ContextEncoderNode:
        encoders.append(ContextEncoderNode())
        return encoders[0]

    return run(encoder, lambda: ComposedPolicy(encoders[0]))


if __name__ == "__main__":
    raise SystemExit(main())
