# SPDX-License-Identifier: Apache-2.0
"""The one loop, and what surrounds it: configuration, schedules, checkpoints, callbacks, stopping."""
