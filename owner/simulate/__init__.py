"""The main job on one machine: an owner and contributors, honest and attacking, as real processes on loopback."""
