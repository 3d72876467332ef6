# SPDX-License-Identifier: Apache-2.0
"""SPC for robots: learn from recorded data, adapt from a few seconds of experience. No ROS in here.

 robot or sim --ROS topics--> bag --convert--> dataset --train--> checkpoint --deploy--> nodes --commands--> robot
                               |                  |                  |                     |
                           contract.yaml ..... copied ........... copied ........... read back, compared

The import order follows the picture, and each folder imports only those before it.
"""

IMPORT_ORDER = (
    *("system", "contract", "alignment", "method", "command_delay", "data", "deploy"),
    *("assessment", "tasks", "trials", "training", "doctor", "comparison", "pages"),
)
