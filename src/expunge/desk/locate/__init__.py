# SPDX-License-Identifier: Apache-2.0
"""Find the records of a request in the training corpora, and say what was not searched."""
