# SPDX-License-Identifier: Apache-2.0
"""The request desk in a browser and over HTTP: the same rules as on the command line, one role a person."""
