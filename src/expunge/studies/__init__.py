# SPDX-License-Identifier: Apache-2.0
"""Drivers over many runs."""
