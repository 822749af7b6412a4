"""The ``asr-deploy`` command, which holds all commands of ``export``, ``quantize`` and ``runtime``."""
