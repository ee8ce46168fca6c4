# SPDX-License-Identifier: Apache-2.0
"""The verbs, each a short composition of the rooms below: unlearn, audit, run, train, plan."""
