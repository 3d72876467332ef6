# SPDX-License-Identifier: Apache-2.0
"""The table of faults, continued: bytes and definitions as other recorders, distributions, middlewares write them."""

from __future__ import annotations

from faults import bytes_injections as inject
from faults.bag_injections import then
from faults.bag_table import Fault, refusal
from faults.bag_world import WORLD, recorder
from faults.bytes_injections import (
    ACTION,
    FLATBUFFER,
    JSON,
    PROTOBUF,
    SERVICE,
    Beside,
    beside_sqlite3,
    mcap,
    without_definitions,
)
from support.contracts import stream_section

RANGED = {"observation": [WORLD["observation"][0], stream_section("force", ["range"], inject.RANGE, max_age_s=0.15)]}
STATE = "demo_msgs/msg/State"

BYTES = (
    Fault("bytes that rclpy reserves", "States and commands are followed by the four bytes that rclpy reserves for "
          "empty arrays and does not need.", "Nothing changes.", record=mcap(data=inject.reserved)),
    Fault("bytes after the end", "Each reward is followed by 40 bytes that its definition does not have.",
          "They are not read, as in a node, and noted.", record=mcap(data=inject.longer),
          note="messages of reward are longer than their definition says, by 37 bytes that ROS 2 does not read either; "
               "give the right definition"),
    Fault("an empty text without its NUL", "The frame ids of rewards and forces have length 0, not 1.",
          "Nothing changes.", record=mcap(data=inject.without_nul)),
    refusal("XCDR2", "Rewards are in the representation XCDR2 (they begin with 00 07).", "Refused.",
            "it begins with 00 07: XCDR2, not plain CDR, which is not read here; let its publisher use the data "
            "representation XCDR1", record=mcap(data=inject.as_xcdr2)),
    Fault("a service event", "A topic beside the robot's has the definition of a service.", "Nothing changes.",
          record=mcap(Beside("/add/_service_event", "demo_msgs/srv/Add_Event", SERVICE))),
    Fault("feedback of an action", "The same of an action, in sqlite3.", "Nothing changes.",
          record=beside_sqlite3(Beside("/arm/_action/feedback", "demo_msgs/action/Move_FeedbackMessage", ACTION))),
    Fault("a definition that nobody can read", "The definition of a topic beside the robot's is no definition.",
          "Nothing changes.", record=mcap(Beside("/vendor", STATE, "<xml/>"))),
    refusal("a definition that lacks a type", "The rewards' definition has a field of a type that nothing defines.",
            "Refused.", "topic '/reward': not decoded, no definition of vendor_msgs/msg/Lost, neither in the bag nor "
            "in ROS 2; give the folder of its package, with msg/*.msg (--types), or record again",
            record=mcap(text=inject.lacking)),
    Fault("the same beside", "A topic beside the robot's has such a definition.", "Nothing changes.",
          record=mcap(Beside("/vendor", STATE, "vendor_msgs/Lost lost"))),
    Fault("CRLF and Latin-1", "All definitions have CRLF line ends, and a comment in Latin-1.", "Nothing changes.",
          record=mcap(text=inject.odd_text)),
    Fault("definitions in IDL", "The definition of the rewards is in IDL, with includes.", "Nothing changes.",
          record=mcap(text=inject.idl_of, encoding=inject.idl_encoding)),
    Fault("two definitions of a type beside", "A vendor's type has two definitions, on two topics.",
          "Nothing changes.", record=mcap(Beside("/one", STATE, "float64 a\n"), Beside("/two", STATE, "bool b\n"))),
    Fault("one definition in two spellings", "The rewards' definition has a comment in the second half.",
          "Nothing changes: the fields are the same.",
          record=mcap(again="# new\n" + inject.definition(inject.VECTOR))),
    refusal("two definitions of a topic that is read", "From the middle on, the rewards' type has another field.",
            "Refused.", "topic '/reward': geometry_msgs/msg/Vector3Stamped has two definitions in this bag "
            "(geometry_msgs/msg/Vector3Stamped: header, vector and w); convert the parts that were recorded with each",
            record=mcap(again="float64 w\n")),
    Fault("protobuf beside", "Foxglove's SDK recorded a topic in protobuf, whose schema is not text.",
          "It is left out, and all else read.", record=mcap(PROTOBUF),
          note="topic /scene is serialised as 'protobuf', not as 'cdr', and left out"),
    Fault("flatbuffer and JSON beside", "The same in flatbuffer, and in JSON without a schema.",
          "They are left out, and all else read.", record=mcap(FLATBUFFER, JSON),
          note="topic /log is serialised as 'json', not as 'cdr', and left out"),
    Fault("unclosed mcap with protobuf", "As above, and the recorder was killed.", "Everything else is read.",
          record=mcap(PROTOBUF, FLATBUFFER, closed=False),
          note="recording was not closed: 1 chunks and 68 messages read, nothing that was written is lost"),
    Fault("names without /msg/", "The recorder calls its types sensor_msgs/JointState and so on.", "Nothing changes.",
          record=mcap(name=inject.short_name)),
    Fault("no definitions", "A database of ROS 2 Humble: no definitions.", "Those of Humble are used.",
          record=without_definitions("humble"), note="the definition of ROS 2 Humble is used, which the bag names"),
    Fault("another definition in another distribution", "The same with sensor_msgs/Range, which Jazzy extended.",
          "Humble's is used.", adapt=inject.with_range, contract=RANGED,
          record=without_definitions("humble", inject.HUMBLE),
          note="geometry_msgs/msg/Vector3Stamped; the definition of ROS 2 Humble is used, which the bag names"),
    Fault("a distribution without a name", "The same, and the bag does not say who recorded it.",
          "The definition that fits every message is used.", adapt=inject.with_range, contract=RANGED,
          record=without_definitions("", inject.HUMBLE),
          note="the bag does not define sensor_msgs/msg/Range; the definition of ROS 2 Humble is used, which fits"),
    Fault("a wrong distribution", "The bag says humble, but its messages are Jazzy's.",
          "The definition that fits every message is used.", adapt=inject.with_range, contract=RANGED,
          record=without_definitions("humble"),
          note="Jazzy is used, which fits every message; that of Humble, which the bag names, does not"),
    Fault("a renamed file", "The storage file was renamed; metadata.yaml has the old name.", "It is read.",
          record=then(recorder(), inject.renamed),
          note="metadata.yaml names bag.mcap, which is not there; monday.mcap, the only file, is read"),
)  # fmt: skip
