# SPDX-License-Identifier: Apache-2.0
"""Measuring a model: one pass writes records, metrics are pure functions of the records."""
