# SPDX-License-Identifier: Apache-2.0
"""A contract's topics as subscriptions and publishers, and the one definition of the context message."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float32MultiArray, Float64MultiArray, MultiArrayDimension

from spc_core.alignment.frames import ObservationAssembler, TransitionAssembler
from spc_core.contract import Contract, ContractError, suggest
from spc_ros.bags.contract_reader import ContractReader, push
from spc_ros.bags.messages import FieldWriter, MessageError, set_stamp

PACKAGES = (
    *("sensor_msgs", "std_msgs", "geometry_msgs", "nav_msgs", "trajectory_msgs"),
    *("diagnostic_msgs", "rosgraph_msgs"),
)
EPISODE_TOPIC = "episode"
CONTEXT_TOPIC = "context"
REWARD_TOPIC = "reward"
INTERVENTION_TOPIC = "interventions"  # latched JSON: kind, reason, t_ns, count
DELAY_TOPIC = "command_delay"  # latched; see encode_delay
SWAP_TOPIC = "model_swap"
RECALLED_TOPIC = "recalled"  # latched JSON: how the reading of recordings went
BAGS_TOPIC = "recorder/bags"
LOCKSTEP_DEPTH = 1000
PATIENCE_NS = 1_000_000_000  # for transitions; the same as for a bag, so that both decide alike


def message_class(type_name: str) -> Any:
    """The Python class of a standard message type. Raises ContractError: no other package is imported."""
    package, _, name = type_name.partition("/msg/")
    if package not in PACKAGES:
        raise ContractError(f"message type '{type_name}' is not of a known package; known: {', '.join(PACKAGES)}")
    module = importlib.import_module(f"{package}.msg")
    if not hasattr(module, name):
        raise ContractError(f"{package} has no message '{name}'{suggest(name, dir(module))}")
    return getattr(module, name)


def stream_qos(reliable: bool) -> QoSProfile:
    """Sensor data where the newest value counts; with `reliable`, lock-step, where none may be lost."""
    if reliable:
        return QoSProfile(depth=LOCKSTEP_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
    return QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


def latched_qos(depth: int = 1) -> QoSProfile:
    """Reliable, and late subscribers get the last `depth` messages."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def now_ns(node: Node) -> int:
    """The node's clock: simulation time under use_sim_time, else wall time."""
    return node.get_clock().now().nanoseconds


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A topic's share of the observation vector."""

    topic: str
    type: str
    fields: tuple[str, ...]
    columns: tuple[int, ...]


def observation_parts(contract: Contract) -> list[Part]:
    """Topics in the order of publishing: the first stream, which sets the ticks, comes last."""
    parts: dict[str, Part] = {}
    column = 0
    for stream in contract.observation:
        columns = tuple(range(column, column + len(stream.fields)))
        column += len(columns)
        old = parts.get(stream.topic, Part(stream.topic, stream.type, (), ()))
        parts[stream.topic] = Part(stream.topic, stream.type, old.fields + stream.fields, old.columns + columns)
    return list(reversed(parts.values()))


class StatePublishers:
    """Publishes states on the contract's topics, `reward` and `/clock`, and counts by topic."""

    def __init__(self, node: Node, contract: Contract, reliable: bool) -> None:
        self.counts: Counter[str] = Counter()
        qos = stream_qos(reliable)
        self._clock = node.create_publisher(Clock, "/clock", qos)
        self._parts = [
            (part, np.array(part.columns), FieldWriter(part.type, part.fields, part.topic),
             message_class(part.type), node.create_publisher(message_class(part.type), part.topic, qos))
            for part in observation_parts(contract)
        ]  # fmt: skip
        reward = contract.reward
        topic, kind, field = REWARD_TOPIC, "geometry_msgs/msg/Vector3Stamped", "vector.x"
        if reward.topic is not None and reward.type is not None and reward.field is not None:
            topic, kind, field = reward.topic, reward.type, reward.field
        self._reward_class = message_class(kind)
        self._reward_writer = FieldWriter(kind, (field,), topic)
        self._reward = node.create_publisher(self._reward_class, topic, qos)
        self.first_stream = self._parts[-1][-1]

    @property
    def streams(self) -> int:
        """How many observation messages a tick has."""
        return len(self._parts)

    def publish(self, t_ns: int, observation: np.ndarray, reward: float | None, lost: Collection[int] = ()) -> None:
        """Clock first, then what belongs to the tick, and last the stream that sets the ticks.

        `lost` are numbers of observation messages that are not sent, counted in the order of sending.
        """
        clock = Clock()
        clock.clock.sec, clock.clock.nanosec = divmod(t_ns, 1_000_000_000)
        self._send(self._clock, clock)
        if reward is not None:
            msg = self._reward_class()
            self._reward_writer.fill(msg, np.array([reward]))
            set_stamp(msg, t_ns)
            self._send(self._reward, msg)
        for i, (_, columns, writer, kind, publisher) in enumerate(self._parts):
            if i in lost:
                continue
            msg = kind()
            writer.fill(msg, observation[columns])
            set_stamp(msg, t_ns)
            self._send(publisher, msg)

    def _send(self, publisher: Any, msg: Any) -> None:
        publisher.publish(msg)
        self.counts[publisher.topic_name] += 1


def subscribe_contract(
    node: Node,
    contract: Contract,
    assembler: ObservationAssembler | TransitionAssembler,
    on_decided: Callable[[list[Any]], None],
    reliable: bool,
    complain: Callable[[str, str], None],
    on_sample: Callable[[tuple[str, int], int, np.ndarray], None] | None = None,
) -> None:
    """Feed a contract's topics to an assembler; `on_decided` gets what a message decided, if anything.

    `on_sample` gets each sample first: (role, t_ns, values).

    `complain(kind, text)` hears of messages that cannot be read; they are left out. The first stream, which
    sets the ticks, is subscribed last: discovery keeps that order, so whoever sees it knows that all stand.
    """
    reader = ContractReader(contract)
    whole = isinstance(assembler, TransitionAssembler)

    receive_ns = functools.partial(now_ns, node)

    def on_message(topic: str, deserialize: Callable[[bytes], Any], data: bytes) -> None:
        unset = reader.unset_stamps[topic]
        try:
            samples = reader.live_samples(topic, data, receive_ns, deserialize)
        except MessageError as error:
            complain("unreadable", str(error))
            return
        if reader.unset_stamps[topic] > unset:
            complain("unset stamps", f"topic '{topic}': no stamp; taken as stamped on arrival")
        for role, t_ns, values in samples:
            if on_sample is not None:
                on_sample(role, t_ns, values)
            if isinstance(assembler, TransitionAssembler):
                decided = push(assembler, role, t_ns, values)
            else:
                decided = assembler.push(role[1], t_ns, values) if role[0] == "observation" else []
            if decided:
                on_decided(decided)

    for topic, type_name in reversed(reader.types.items()):
        if whole or any(kind == "observation" for kind, _ in reader.route(topic)):
            kind = message_class(type_name)
            callback = functools.partial(on_message, topic, deserializer(kind, topic))
            node.create_subscription(kind, topic, callback, stream_qos(reliable), raw=True)


def deserializer(kind: Any, topic: str) -> Callable[[bytes], Any]:
    """Bytes to a message of the class `kind`. Raises MessageError for what is none."""

    def deserialize(data: bytes) -> Any:
        try:
            return deserialize_message(data, kind)
        except RuntimeError as error:  # the middleware's
            raise MessageError(f"topic '{topic}': not a {kind.__name__}, {len(data)} bytes: {error}") from None

    return deserialize


@dataclasses.dataclass(frozen=True)
class ContextReading:
    """What a context message says."""

    context: np.ndarray  # z, (Z,) float32
    uncertainty: np.ndarray | None  # (Z,) float32, standard error of z; None: the message does not tell
    count: int  # transitions that went into z
    t_ns: int  # the tick that z is meant for
    model: int | None = None  # id of the model whose encoder made z; None: the message does not tell


def encode_context(
    context: np.ndarray, uncertainty: np.ndarray, count: int, t_ns: int, model: int | None = None
) -> Float32MultiArray:
    """The context message: `data` is z (Z,), then its uncertainty (Z,); the layout's labelled sizes say the rest.

    dim[0] "context": Z. dim[1] "transitions": how many went into z. dim[2] "stamp.sec" and dim[3] "stamp.nanosec":
    the tick that z is meant for, since Float32MultiArray has no header. dim[4] "uncertainty": Z again; messages of
    bags older than it lack it. dim[5] "model": the id of the model whose encoder made z, where `model` is given.
    """
    if len(uncertainty) != len(context):
        raise ValueError(f"uncertainty has {len(uncertainty)} numbers; give one for each of context's {len(context)}")
    msg = Float32MultiArray()
    seconds, nanoseconds = divmod(t_ns, 1_000_000_000)
    sizes = {
        "context": len(context),
        "transitions": count,
        "stamp.sec": seconds,
        "stamp.nanosec": nanoseconds,
        "uncertainty": len(uncertainty),
    }
    if model is not None:
        sizes["model"] = model
    msg.layout.dim = [MultiArrayDimension(label=label, size=size, stride=1) for label, size in sizes.items()]
    msg.layout.dim[0].stride = len(context)
    msg.data = np.concatenate((context, uncertainty)).astype(np.float32).tolist()
    return msg


def encode_delay(delay_ms: float, uncertainty_ms: float) -> Float64MultiArray:
    """The delay from command to state: `data` is delay_ms, uncertainty_ms, as the labels of the layout say."""
    msg = Float64MultiArray(data=[delay_ms, uncertainty_ms])
    labels = ("delay_ms", "uncertainty_ms")
    msg.layout.dim = [MultiArrayDimension(label=label, size=1, stride=1) for label in labels]
    return msg


def decode_context(msg: Float32MultiArray) -> ContextReading:
    """What a context message says, of either form. Raises ValueError for another layout."""
    sizes = {dim.label: dim.size for dim in msg.layout.dim}
    missing = [k for k in ("context", "transitions", "stamp.sec", "stamp.nanosec") if k not in sizes]
    z, told = sizes.get("context", 0), sizes.get("uncertainty", 0)
    if missing or told not in (0, z) or z + told != len(msg.data):
        raise ValueError(
            f"topic '{CONTEXT_TOPIC}': not a context message, layout says {sizes}, {len(msg.data)} numbers"
        )
    numbers = np.asarray(msg.data, np.float32)
    t_ns = sizes["stamp.sec"] * 1_000_000_000 + sizes["stamp.nanosec"]
    return ContextReading(numbers[:z], numbers[z:] if told else None, sizes["transitions"], t_ns, sizes.get("model"))
