"""A language model that plays: an OpenAI-compatible server for a stack without any key, and for tests.

`demo` does a real agent task and says openly that it is scripted; `scripted` does what a `<script>` in the
conversation tells it, errors of every class included.
"""
