"""Kickstarts and their like: releases, rendering, checking."""
