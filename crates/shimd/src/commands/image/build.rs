use std::env;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::RangedI64ValueParser;
use clap::{Args, value_parser};
use vmm_image::{GuestFiles, ImageBuilder};
use vmm_runtime::{HostPolicy, Image};
use vmm_shim::{Disk, EngineError, QemuOptions};

use crate::commands::box_args::parse_variable;
use crate::daemon::shim;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::print;

/// Build an image of a guest, and print its name
///
/// The guest boots with an agent as its first process, so that `shimd exec` runs commands in it. All
/// boxes of the image share its root file system; what a box writes is in its memory. An image of the
/// same name is replaced: boxes that run keep the old one until they are started again.
///
/// Owners are kept for root. The programs `mke2fs` and, for an archive, `tar` are needed.
#[derive(Args, Debug)]
#[command(after_long_help = BUILD_EXAMPLES)]
pub(super) struct Build {
    /// Root file system: a directory, or a tar archive, which may be compressed
    #[arg(long, value_name = "DIR|TAR")]
    rootfs: PathBuf,
    /// Kernel [default: the newest /boot/vmlinuz-VERSION with modules]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Directory of the kernel's modules [default: /lib/modules/VERSION]
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Static program of the agent [default: vmm-agent beside shimd]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Number of virtual CPUs of a box whose creator sets none
    #[arg(long, value_name = "N", value_parser = range(Image::CPUS_RANGE))]
    cpus: Option<u32>,
    /// Memory in MiB of a box whose creator sets none
    #[arg(short, long, value_name = "MIB", value_parser = range(Image::MEMORY_MIB_RANGE))]
    memory: Option<u32>,
    /// Set an environment variable of the command; without a value, copy it from this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Name of the image
    name: String,
    /// Command of a box whose creator sets none
    #[arg(last = true)]
    command: Vec<String>,
}

const BUILD_EXAMPLES: &str = "\
Examples:
  mmdebstrap --variant=minbase bookworm rootfs.tar
  shimd image build --rootfs rootfs.tar debian

  skopeo copy docker://alpine oci:alpine:latest
  umoci unpack --image alpine:latest bundle
  shimd image build --rootfs bundle/rootfs alpine";

impl Build {
    pub(super) fn run(self, home: &Home) -> Result<ExitCode, Failure> {
        let staged = home.images().stage(&self.name)?;
        let image = self.image(&GuestFiles::of(staged.image_dir()));
        let payload = image.payload(None, None);
        let checked = payload.check();
        checked
            .map_err(|error| EngineError::Spec(error.to_string()))
            .and_then(|()| shim().validate(&payload, &HostPolicy::default()))
            .map_err(Failure::ImageSpec)?;
        self.builder()?.build(staged.dir())?;
        staged.commit(&image)?;
        print(format_args!("{}\n", self.name))?;
        Ok(ExitCode::SUCCESS)
    }

    fn builder(&self) -> Result<ImageBuilder, Failure> {
        let agent = match &self.agent {
            Some(file) => file.clone(),
            None => env::current_exe()
                .map_err(Failure::system("find the program of shimd"))?
                .with_file_name("vmm-agent"),
        };
        let mut builder = ImageBuilder::new(&self.rootfs, agent);
        if let Some(file) = &self.kernel {
            builder = builder.kernel(file);
        }
        if let Some(dir) = &self.modules {
            builder = builder.modules(dir);
        }
        Ok(builder)
    }

    fn image(&self, files: &GuestFiles) -> Image {
        let mut options = QemuOptions::new(files.kernel());
        options.initrd = Some(files.initrd());
        options.disks.push(Disk::read_only(files.root()));
        options.cmdline = GuestFiles::KERNEL_PARAMETERS.to_owned();
        options.agent = true;
        let payload = options.to_payload();
        let mut image = Image::command(&self.command);
        image.engine = payload.engine;
        image.options = payload.options;
        image.env = self
            .env
            .iter()
            .filter_map(|arg| parse_variable(arg))
            .collect();
        image.working_dir.clone_from(&self.workdir);
        image.cpus = self.cpus;
        image.memory_mib = self.memory;
        image
    }
}

fn range(range: RangeInclusive<u32>) -> RangedI64ValueParser<u32> {
    let (min, max) = range.into_inner();
    value_parser!(u32).range(i64::from(min)..=i64::from(max))
}
