//! Mutates JSON documents. A byte that the fuzzer changes mostly makes a document malformed, so it
//! hardly ever tries an odd value in a document that is valid otherwise.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Deserializer, Value, json};

/// Replaces a value in the JSON documents at the beginning of an input, or mutates its bytes. Returns
/// its size.
pub fn mutate(input: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let seed = seed as usize;
    if seed % 2 == 0
        && let Some(mutated) = replace_value(&input[..size], seed / 2)
        && mutated.len() <= max_size
    {
        input[..mutated.len()].copy_from_slice(&mutated);
        return mutated.len();
    }
    fuzzer_mutate(input, size, max_size)
}

fn replace_value(input: &[u8], seed: usize) -> Option<Vec<u8>> {
    let mut stream = Deserializer::from_slice(input).into_iter();
    let mut documents: Vec<Value> = stream.by_ref().map_while(Result::ok).collect();
    let rest = input.get(stream.byte_offset()..)?;
    let count = documents.iter().map(count_values).sum::<usize>();
    let mut index = seed.checked_rem(count)?;
    let value = documents
        .iter_mut()
        .find_map(|document| nth_value(document, &mut index))?;
    *value = odd_value(value, seed / count);
    let mut mutated = Vec::new();
    for document in documents {
        serde_json::to_writer(&mut mutated, &document).ok()?;
        mutated.push(b'\n');
    }
    mutated.extend_from_slice(rest);
    Some(mutated)
}

fn children(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    }
}

fn count_values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count_values).sum::<usize>(),
        Value::Object(fields) => fields.values().map(count_values).sum(),
        _ => 0,
    }
}

/// Returns the value with this index, each value before those within it.
fn nth_value<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    children(value)
        .into_iter()
        .find_map(|child| nth_value(child, index))
}

/// Returns a value that is odd for its type, or of another type.
fn odd_value(value: &Value, seed: usize) -> Value {
    let odd = match value {
        Value::Number(number) => json!([
            0,
            1,
            -1,
            64,
            65,
            255,
            256,
            u32::MAX,
            i64::MIN,
            i64::MAX,
            u64::MAX,
            0.5,
            1e300,
            number.as_u64().unwrap_or_default().wrapping_add(1),
            number.to_string(),
            null
        ]),
        Value::String(text) => json!([
            "",
            "\0",
            "=",
            "\n",
            "ä",
            "0",
            "..",
            "/",
            text.repeat(2),
            "x".repeat(5000),
            text.trim_end_matches(char::is_alphanumeric),
            7,
            null
        ]),
        Value::Array(items) => {
            let twice = [items.as_slice(), items].concat();
            json!([[], [items], twice, {}, null])
        }
        Value::Bool(on) => json!([!on, 1, "true", null]),
        Value::Null => json!([0, "", false, [], {}]),
        Value::Object(fields) => json!([{}, {"": fields}, [fields], null]),
    };
    let Value::Array(odd) = odd else {
        return Value::Null;
    };
    odd[seed % odd.len()].clone()
}
