use std::process::ExitCode;

use clap::Args;
use vmm_rest::wire::ImageInfo;

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{Cell, Format, Table, format_age, plain, print, print_json};

/// List the images that were built
///
/// The image `idle` and the images of `shimd serve --images` are not among them.
#[derive(Args, Debug)]
pub(super) struct List {
    /// Print only the names
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl List {
    pub(super) fn run(self, home: &Home) -> Result<ExitCode, Failure> {
        let images = home.images().list()?;
        let images: Vec<ImageInfo> = images.into_iter().map(Into::into).collect();
        if self.quiet {
            let names = images
                .iter()
                .map(|it| format!("{}\n", plain(&it.reference)));
            print(names.collect::<String>())?;
        } else {
            match self.format {
                Format::Table => print(table(&images))?,
                Format::Json => print_json(&images)?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(images: &[ImageInfo]) -> Table<3> {
    let mut table = Table::new(["IMAGE", "SIZE", "BUILT"]);
    for image in images {
        let mib = image
            .size_bytes
            .map(|bytes| format!("{} MiB", bytes.div_ceil(1 << 20)));
        table.add_row([
            image.reference.clone().into(),
            Cell::or_dash(mib),
            format!("{} ago", format_age(image.cached_at)).into(),
        ]);
    }
    table
}
