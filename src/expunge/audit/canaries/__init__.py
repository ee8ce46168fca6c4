# SPDX-License-Identifier: Apache-2.0
"""Canaries: records that a coin put into the training data or kept out, and what scoring them shows."""
