# SPDX-License-Identifier: Apache-2.0
"""The request desk: requests come in with a deadline, evidence goes out."""
