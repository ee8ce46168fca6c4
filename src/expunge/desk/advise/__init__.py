# SPDX-License-Identifier: Apache-2.0
"""Which route fits a request: rules that are data, read against what is known of it."""
