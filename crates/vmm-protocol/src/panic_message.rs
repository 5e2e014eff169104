use std::any::Any;

/// Returns the message of a panic, from what `catch_unwind` returns or a panic hook receives.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    let message = literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    message.unwrap_or("non-string panic payload")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_has_its_message_or_a_substitute() {
        for (panic, message) in [
            (Box::new("literal") as Box<dyn Any + Send>, "literal"),
            (Box::new("formatted".to_owned()), "formatted"),
            (Box::new(7), "non-string panic payload"),
        ] {
            assert_eq!(panic_message(&*panic), message);
        }
    }
}
