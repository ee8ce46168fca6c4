# SPDX-License-Identifier: Apache-2.0
"""Which data, which protocol, which metrics: benchmarks as versioned definitions."""
