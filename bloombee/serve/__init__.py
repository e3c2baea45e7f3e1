"""OpenAI's HTTP API over a Runtime, and what one sees of a swarm in a browser.

A layer above the Runtime, in the same process: it calls what every program may call (ADR 80).
A request of a program is bounded before it is read, typed before it is looked at, and refused in OpenAI's own shape.
"""
