# SPDX-License-Identifier: Apache-2.0
"""How weights move: optimisers and what wraps or restricts their steps."""
