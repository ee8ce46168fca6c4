# SPDX-License-Identifier: Apache-2.0
"""What one forward pass tells: likelihood, hidden states, generation, and the cached answers of a frozen reference."""
