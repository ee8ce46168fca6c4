# SPDX-License-Identifier: Apache-2.0
"""One file a method or close family: typed configuration, card, procedure; and the registry that lists them."""
