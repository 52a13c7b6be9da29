"""Validates JSON values against the schemas: each line of stdin is [name of a definition, value], each of stdout true or false."""

import json
import sys

import jsonschema_rs

schema = json.load(open(sys.argv[1], encoding="utf-8"))
validators = {}
for line in sys.stdin:
    name, value = json.loads(line)
    if name not in validators:
        root = {"$ref": f"#/definitions/{name}", "definitions": schema["definitions"]}
        validators[name] = jsonschema_rs.Draft7Validator(root)
    print(json.dumps(validators[name].is_valid(value)))
