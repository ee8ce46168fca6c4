# SPDX-License-Identifier: Apache-2.0
"""Loading and saving models, which parameters may move, adapters, digests. Import its modules; this one is cheap."""
