# SPDX-License-Identifier: Apache-2.0
"""Attacks: ways to bring back what was unlearned, each number beside its control."""
