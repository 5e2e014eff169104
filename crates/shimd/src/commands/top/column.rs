use ratatui::text::Span;

/// A column of the list of boxes, in screen order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    Id,
    Name,
    Image,
    Status,
    Pid,
    Cpu,
    Memory,
    Age,
    Remark,
}

/// The number of columns that a narrow screen has.
const ESSENTIAL: usize = 3;

/// The width that further columns leave to the name, for the id of a box without one.
const SPARE_FOR_NAME: u16 = 14;

/// Blanks between two columns.
const GAP: u16 = 1;

impl Column {
    const BY_IMPORTANCE: [Self; 9] = [
        Self::Name,
        Self::Status,
        Self::Remark,
        Self::Cpu,
        Self::Memory,
        Self::Pid,
        Self::Age,
        Self::Image,
        Self::Id,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Id => "BOX ID",
            Self::Name => "NAME",
            Self::Image => "IMAGE",
            Self::Status => "STATUS",
            Self::Pid => "PID",
            Self::Cpu => "CPU%",
            Self::Memory => "MEM",
            Self::Age => "AGE",
            Self::Remark => "REMARK",
        }
    }

    /// Returns the minimum and the maximum width.
    fn widths(self) -> (u16, u16) {
        match self {
            Self::Id => (26, 26),
            Self::Name => (12, 32),
            Self::Image => (8, 24),
            Self::Status => (10, 10),
            Self::Pid => (7, 7),
            Self::Cpu => (5, 5),
            Self::Memory => (6, 6),
            Self::Age => (4, 4),
            Self::Remark => (16, u16::MAX),
        }
    }

    /// Returns the most important columns that fit, at least one.
    pub(super) fn select(width: u16) -> Vec<Self> {
        let mut used = 0;
        let mut selected: Vec<_> = Self::BY_IMPORTANCE
            .into_iter()
            .enumerate()
            .take_while(|(index, column)| {
                used += column.widths().0 + if *index > 0 { GAP } else { 0 };
                let spare = if *index < ESSENTIAL {
                    0
                } else {
                    SPARE_FOR_NAME
                };
                *index == 0 || used + spare <= width
            })
            .map(|(_, column)| column)
            .collect();
        selected.sort_unstable();
        selected
    }

    /// Distributes `width` so that as much as possible of the cells can be read, by importance.
    pub(super) fn distribute(columns: &[Self], width: u16, rows: &[Vec<Span<'_>>]) -> Vec<u16> {
        let mut widths: Vec<_> = columns.iter().map(|column| column.widths().0).collect();
        let gaps = GAP * u16::try_from(columns.len().saturating_sub(1)).unwrap_or(0);
        let mut spare = width.saturating_sub(widths.iter().sum::<u16>() + gaps);
        for column in Self::BY_IMPORTANCE {
            let Some(index) = columns.iter().position(|it| *it == column) else {
                continue;
            };
            let longest = rows.iter().map(|row| row[index].width()).max();
            let longest = u16::try_from(longest.unwrap_or(0)).unwrap_or(u16::MAX);
            let wanted = longest.min(column.widths().1);
            let more = wanted.saturating_sub(widths[index]).min(spare);
            widths[index] += more;
            spare -= more;
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_important_column_is_dropped_first() {
        use Column::{Age, Cpu, Id, Image, Memory, Name, Pid, Remark, Status};
        let all = vec![Id, Name, Image, Status, Pid, Cpu, Memory, Age, Remark];
        assert_eq!(Column::select(200), all);
        assert_eq!(
            Column::select(80),
            [Name, Status, Pid, Cpu, Memory, Age, Remark]
        );
        assert_eq!(Column::select(40), [Name, Status, Remark]);
        assert_eq!(Column::select(1), [Name]);
    }

    #[test]
    fn spare_width_goes_to_long_cells() {
        let columns = Column::select(40);
        let row = |name: usize, remark: usize| {
            let texts = ["n".repeat(name), "running".to_owned(), "r".repeat(remark)];
            texts.map(Span::from).to_vec()
        };
        assert_eq!(
            Column::distribute(&columns, 40, &[row(40, 80)]),
            [12, 10, 16]
        );
        assert_eq!(
            Column::distribute(&columns, 80, &[row(20, 80)]),
            [20, 10, 48]
        );
        assert_eq!(Column::distribute(&columns, 80, &[row(3, 3)]), [12, 10, 16]);
        assert_eq!(Column::distribute(&columns, 80, &[]), [12, 10, 16]);
    }
}
