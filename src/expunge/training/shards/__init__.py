# SPDX-License-Identifier: Apache-2.0
"""Training in shards and slices, so that forgetting retrains only what saw the data."""
