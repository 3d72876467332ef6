# SPDX-License-Identifier: Apache-2.0
"""Topic names, QoS profiles, and the node's clock."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

EPISODE_TOPIC = "episode"
CONTEXT_TOPIC = "context"
REWARD_TOPIC = "reward"
INTERVENTION_TOPIC = "interventions"  # latched JSON: kind, reason, t_ns, count
DELAY_TOPIC = "command_delay"  # latched; see encode_delay
SWAP_TOPIC = "model_swap"
RECALLED_TOPIC = "recalled"  # latched JSON: the outcome of loading recordings
BAGS_TOPIC = "recorder/bags"
STOP_TOPIC = "emergency_stop"  # std_msgs/Bool, of the robot
OPERATOR_STOP_TOPIC = "operator_stop"  # the same, of an operator's console
LOCKSTEP_DEPTH = 1000


def stream_qos(reliable: bool) -> QoSProfile:
    """Best effort for sensor data; `reliable` for lock-step, where no message may be lost."""
    if reliable:
        return QoSProfile(depth=LOCKSTEP_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
    return QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


def latched_qos(depth: int = 1) -> QoSProfile:
    """Reliable; late subscribers get the last `depth` messages."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def now_ns(node: Node) -> int:
    """The node's clock: simulation time under use_sim_time, else wall time."""
    return node.get_clock().now().nanoseconds
