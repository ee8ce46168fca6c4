# SPDX-License-Identifier: Apache-2.0
"""Looking inside: how states, curvature and weights of a model differ from those of the model it was made from."""
