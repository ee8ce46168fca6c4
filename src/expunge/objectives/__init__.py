# SPDX-License-Identifier: Apache-2.0
"""Objectives as pure tensor functions: signals in, losses out. No model, no configuration, no I/O.

Every function returns a loss to be minimised, per token or per sequence; `reduction` turns those into one scalar.
"""
