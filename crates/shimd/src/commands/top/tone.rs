/// What a text is to say beyond its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Alarm,
    Good,
    Plain,
}

impl Tone {
    pub(super) fn alarm_if(alarming: bool) -> Self {
        match alarming {
            true => Self::Alarm,
            false => Self::Plain,
        }
    }
}
