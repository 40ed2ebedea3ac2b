//! The JSON Schema of the output, shipped beside the code and printed by `perf-agent schema`.

/// JSON Schema (2020-12) of one line of NDJSON.
pub const SCHEMA: &str = include_str!("../schema.json");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::model::Line;
    use serde_json::{Map, Value, json};
    use std::sync::OnceLock;

    /// What the model leaves out where there is nothing to say: ends of paths.
    const OPTIONAL: &[&str] = &[
        ".blocked_class",
        ".blocked_stack",
        "_stack[].build_id",
        ".caused_by",
        ".caller",
        ".connect_ns",
        ".count_error",
        "faults.cpu_ns",
        ".detail",
        ".exit_code",
        ".exhausted_in_ns",
        ".exited",
        ".led_by",
        ".limit.cgroup",
        "ledger.memory",
        ".grown_bytes",
        ".hook_ns",
        ".module",
        ".inlined",
        "finding.owner",
        "(file).path",
        ".rtt_max_ns",
        ".rtt_min_ns",
        ".root",
        ".rtt_ns",
        ".short_lived",
        "slowest[].error",
        "slowest[].ledger",
        "slowest[].trace_id",
        "slowest[].unattributed",
        ".streams",
        ".slowdown",
        "_stack[].source",
        ".syscall",
        ".throttled",
        ".trend",
        ".waker_rest",
    ];

    fn schema() -> Value {
        serde_json::from_str(SCHEMA).unwrap()
    }

    fn to_json(line: &Line) -> Value {
        serde_json::to_value(line).unwrap()
    }

    /// Every way the validator says `value` is wrong.
    fn errors(value: &Value) -> Vec<String> {
        static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
        VALIDATOR
            .get_or_init(|| jsonschema::draft202012::new(&schema()).unwrap())
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path))
            .collect()
    }

    #[test]
    fn the_schema_is_a_schema() {
        let schema = schema();
        assert_eq!(
            schema["$schema"],
            "https://json-schema.org/draft/2020-12/schema"
        );
        jsonschema::draft202012::meta::validate(&schema).unwrap();
    }

    #[test]
    fn every_line_the_program_can_emit_is_valid() {
        for line in fixtures::full_lines()
            .iter()
            .chain(&fixtures::minimal_lines())
        {
            let value = to_json(line);
            assert_eq!(errors(&value), [""; 0], "{value:#}");
        }
    }

    #[test]
    fn a_line_that_lacks_a_field_or_has_a_wrong_one_is_not_valid() {
        for line in fixtures::minimal_lines() {
            let value = to_json(&line);
            let fields = value.as_object().unwrap();
            for name in fields.keys() {
                let mut without = fields.clone();
                without.remove(name);
                assert_ne!(
                    errors(&Value::Object(without)),
                    [""; 0],
                    "{}: `{name}` is not required",
                    value["type"]
                );
                let mut wrong = fields.clone();
                wrong.insert(name.clone(), json!(-1));
                assert_ne!(
                    errors(&Value::Object(wrong)),
                    [""; 0],
                    "{}: `{name}` may be -1",
                    value["type"]
                );
            }
        }
        assert_ne!(errors(&json!({"v": 1, "type": "poem"})), [""; 0]);
    }

    #[test]
    fn every_field_that_is_emitted_is_described() {
        let schema = schema();
        let mut missing = Vec::new();
        for line in fixtures::full_lines() {
            let value = to_json(&line);
            let kind = value["type"].as_str().unwrap();
            let node = &schema["$defs"][kind];
            assert!(
                node.is_object(),
                "add `{kind}` to schema.json: $defs and oneOf"
            );
            undescribed(&schema, node, &value, kind, &mut missing);
        }
        missing.sort();
        missing.dedup();
        assert!(
            missing.is_empty(),
            "add to perf-agent/schema.json, with type and description: {missing:#?}"
        );
    }

    /// Follows `$ref`, and of a `oneOf` the branch whose constants the value has.
    fn resolve<'a>(root: &'a Value, node: &'a Value, value: &Value) -> &'a Value {
        if let Some(reference) = node["$ref"].as_str() {
            let target = root.pointer(reference.trim_start_matches('#')).unwrap();
            return resolve(root, target, value);
        }
        if let Some(branches) = node["oneOf"].as_array() {
            let fits = |branch: &&Value| {
                branch["properties"].as_object().is_some_and(|properties| {
                    properties.iter().all(|(name, property)| {
                        property["const"].is_null() || property["const"] == value[name]
                    })
                })
            };
            return branches.iter().find(fits).unwrap_or(node);
        }
        node
    }

    /// Collects the paths of `value` that `node` says nothing about: a field that is neither a
    /// property nor covered by a map's value type, one described without a type, or one that is
    /// always there and not required.
    fn undescribed(root: &Value, node: &Value, value: &Value, path: &str, out: &mut Vec<String>) {
        let node = resolve(root, node, value);
        let typed = ["type", "const", "enum"]
            .iter()
            .any(|key| !node[*key].is_null());
        if !typed {
            out.push(format!("{path} (no type)"));
        }
        match value {
            Value::Object(fields) => {
                let path = match value["kind"].as_str() {
                    Some(kind) => format!("{path}({kind})"),
                    None => path.to_owned(),
                };
                let none = Map::new();
                let properties = node["properties"].as_object().unwrap_or(&none);
                let is_required = |name: &str| {
                    node["required"]
                        .as_array()
                        .is_some_and(|names| names.iter().any(|known| known == name))
                };
                for (name, field) in fields {
                    let path = format!("{path}.{name}");
                    match properties.get(name) {
                        Some(property) => {
                            undescribed(root, property, field, &path, out);
                            let optional = OPTIONAL.iter().any(|end| path.ends_with(end));
                            if is_required(name) == optional {
                                out.push(format!("{path} (required, or in OPTIONAL of this test)"));
                            }
                        }
                        None if node["additionalProperties"].is_object() => {
                            undescribed(root, &node["additionalProperties"], field, &path, out);
                        }
                        None => out.push(path),
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    undescribed(root, &node["items"], item, &format!("{path}[]"), out);
                }
            }
            _ => {}
        }
    }
}
