# SPDX-License-Identifier: Apache-2.0
"""The evidence: an append-only, hash-chained log of requests, certificates and their signatures."""
