# SPDX-License-Identifier: Apache-2.0
"""What can be undone exactly or with a bound: ridge regression, counts, and convex heads on frozen features."""
