#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# rclpy 7.1.6 (Jazzy), rmw_fastrtps_cpp 8.4.3, Python 3.11, Linux: two things that the single-threaded executor does
# and rclpy.experimental.EventsExecutor does not.
#
# Guess: the executors differ in speed and order only.
# Seen:
#   1. A subscription whose callback takes (message, info). Single: called, with a dict in which
#      reception_sequence_number is None. Events: spin_once raises SystemError "null argument to internal routine".
#   2. A subscription with a `matched` event, destroyed by a timer before the event was handled. Single: nothing
#      happens. Events: spin_once raises InvalidHandle.
# So a node on the events executor cannot tell who sent a message, nor follow its publishers' QoS by events: poll
# get_publishers_info_by_topic instead, and subscribe without event callbacks where the subscription may be replaced.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check install -qq \
  ros-jazzy-rclpy==7.1.6 ros-jazzy-std-msgs==5.3.6 ros-jazzy-rmw-fastrtps-cpp==8.4.3
cat > "$folder/run.py" <<'PY'
import sys
import time

import rclpy
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.experimental import EventsExecutor
from std_msgs.msg import String

kind, case = sys.argv[1:]
rclpy.init()
node = rclpy.create_node("listener")
executor = EventsExecutor() if kind == "events" else SingleThreadedExecutor()
executor.add_node(node)
result = "nothing"


def with_info(message, info):
    global result
    result = f"called, reception_sequence_number {info['reception_sequence_number']}"


def destroy():
    timer.cancel()
    node.destroy_subscription(subscription)


if case == "info":
    subscription = node.create_subscription(String, "topic", with_info, 10)
else:
    events = SubscriptionEventCallbacks(matched=lambda _: None, use_default_callbacks=False)
    subscription = node.create_subscription(String, "topic", lambda _: None, 10, event_callbacks=events)
    timer = node.create_timer(0.0, destroy)
publisher = node.create_publisher(String, "topic", 10)
time.sleep(0.5)  # so that DDS has matched the two, and the event is pending
publisher.publish(String(data="x"))
try:
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
except Exception as error:
    result = f"{type(error).__name__}: {error}"
print(f"{kind} {case}: {result}", flush=True)
PY
export ROS_DOMAIN_ID="${ROS_DOMAIN_ID:-97}" ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
for case in info destroyed; do
  for kind in single events; do
    "$folder/venv/bin/python" "$folder/run.py" "$kind" "$case" 2>/dev/null || true
  done
done | tee "$folder/seen.txt"
cat > "$folder/expected.txt" <<'TXT'
single info: called, reception_sequence_number None
events info: SystemError: null argument to internal routine
single destroyed: nothing
events destroyed: InvalidHandle: cannot use Destroyable because destruction was requested
TXT
diff "$folder/expected.txt" "$folder/seen.txt"
