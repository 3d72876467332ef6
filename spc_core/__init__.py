# SPDX-License-Identifier: Apache-2.0
"""SPC for robots: learn from recorded data, adapt from a few seconds of experience. No ROS in here.

 robot or sim --ROS topics--> bag --convert--> dataset --train--> checkpoint --deploy--> nodes --commands--> robot
                               |                  |                  |                     |
                           contract.yaml ..... copied ........... copied ........... read back, compared

The import order follows the picture: contract, frames, dataset, dataset_reader, packed; then config, layers, latents,
context_encoder, world_model, iql, agent; then sampler, train, checkpoint, evaluate; then planner, numpy_networks,
torch_networks or onnx_networks, runtime, safety, adaptation.
"""
