"""From a template to the builds that run: variables, names, selection, plans.

All that is wrong, anywhere in the template and its variable files, is raised at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagebuilder.errors import Problem, TemplateError
from imagebuilder.gotemplate.tokens import ExpressionError
from imagebuilder.plugins import BuildContext, OnError
from imagebuilder.suggestion import did_you_mean
from imagebuilder.templates.buildplan import BuildPlan, Planner, PostProcessorPlan, ProvisionerPlan
from imagebuilder.templates.interpolate import Engine, Unset, describe, time_ordered_uuid
from imagebuilder.templates.templatefile import Entry, Template, load_template
from imagebuilder.templates.variables import resolve

__all__ = [
    "BuildPlan", "Inspection", "Plan", "PostProcessorPlan", "ProvisionerPlan", "Template", "VariableInspection",
    "inspect", "load_template", "plan_builds",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The selected builds in the template's order, and what is doubtful about them."""

    builds: tuple[BuildPlan, ...]
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class VariableInspection:
    name: str
    required: bool
    shown: str  # the default, or "<sensitive>"


@dataclass(frozen=True)
class Inspection:
    """What `imgbuild inspect` shows; builders are (name, type), names as they are written."""

    description: str
    variables: tuple[VariableInspection, ...]
    builders: tuple[tuple[str, str], ...]
    provisioners: tuple[str, ...]
    post_processors: tuple[tuple[str, ...], ...]


def plan_builds(
    template: Template,
    *,
    variables: Sequence[tuple[str, str]] = (),
    var_files: Iterable[str | Path] = (),
    only: Collection[str] = (),
    except_: Collection[str] = (),
    on_error: OnError = OnError.CLEANUP,
    force: bool = False,
    debug: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Plan:
    """The builds that `only` and `except_` leave, ready to run. `variables` are those of -var, in their order.

    Raises TemplateError with all problems of the template and of the variables.
    """
    planning = _Planning(template)
    planning.resolve(variables, var_files, os.environ if environ is None else environ)
    names = planning.names()
    selected = planning.select(names, only, except_)
    context = BuildContext(
        build_name="",
        builder_type="",
        renderer=planning.engine,
        template_path=template.path,
        variables=planning.engine.variables,
        sensitive=planning.sensitive,
        run_uuid=time_ordered_uuid(),
        debug=debug,
        force=force,
        on_error=on_error,
        template_digest=template.document.digest,
    )
    builds = [planning.build(name, entry, context, names, except_) for name, entry in selected]
    if planning.problems:
        raise TemplateError(_in_order(planning.problems))
    return Plan(tuple(build for build in builds if build is not None), tuple(_in_order(planning.warnings)))


def inspect(template: Template) -> Inspection:
    """What a template holds, without any value being given. Raises TemplateError for its shape."""
    template.check()
    variables = (
        VariableInspection(name, given.text is None, "<sensitive>" if name in template.sensitive else given.text or "")
        for name, given in sorted(template.variables.items())
    )
    return Inspection(
        template.description,
        tuple(variables),
        tuple((entry.name or entry.type, entry.type) for entry in template.builders),
        tuple(entry.type for entry in template.provisioners),
        tuple(tuple(entry.name or entry.type for entry in chain) for chain in template.post_processors),
    )


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Each once, in the order of the files; builds share components, so the same is found for several."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.position is not None, problem.position))


class _Planning:
    """Gathers what is wrong on the way from a template to its plans."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.problems = list(template.problems)
        self.warnings = list(template.warnings)
        directory = Path(os.path.abspath(template.path)).parent if template.path else None  # noqa: PTH100
        self.engine = Engine({}, template_directory=directory)
        self.sensitive: frozenset[str] = frozenset()

    def resolve(
        self, given: Sequence[tuple[str, str]], var_files: Iterable[str | Path], environ: Mapping[str, str]
    ) -> None:
        declared = self.template.variables
        found = resolve(declared, self.engine, var_files=var_files, environ=environ, given=given)
        self.problems += found.problems
        self.warnings += found.warnings
        self.engine = replace(self.engine, variables=found.values, unset=frozenset(declared) - frozenset(found.values))
        values = (found.values.get(name) for name in self.template.sensitive)
        self.sensitive = frozenset(value for value in values if value)

    def names(self) -> dict[str, Entry]:
        """Every build's name, rendered, and its builder."""
        names: dict[str, Entry] = {}
        if not self.template.builders and not self.template.problems:
            where = self.template.document.position(("builders",))
            self.problems.append(Problem("the template has no builders", where, "'builders' must hold at least one"))
        for entry in self.template.builders:
            name = self.name(entry)
            where = self.template.document.position((*entry.route, "name"))
            if name in names:
                first = self.template.document.position(names[name].route)
                hint = f"give one of them another 'name': the first one is in line {first.line}"
                self.problems.append(Problem(f"two builds have the name '{name}'", where, hint))
            names.setdefault(name, entry)
        return names

    def name(self, entry: Entry) -> str:
        text = entry.name or entry.type
        route = (*entry.route, "name")
        try:
            name, doubts = replace(self.engine, builder_type=entry.type).evaluate(text)
        except Unset:
            return text
        except ExpressionError as error:
            problem = describe(error, text)
            where = self.template.document.inside(route, error.offset)
            self.problems.append(replace(problem, position=where))
            return text
        for doubt in doubts:
            where = self.template.document.inside(route, doubt.offset)
            self.warnings.append(Problem(doubt.message, where, doubt.hint))
        return name or entry.type

    def select(
        self, names: Mapping[str, Entry], only: Collection[str], except_: Collection[str]
    ) -> list[tuple[str, Entry]]:
        """The builds that the person wants; a word that names nothing is a problem."""
        chains = self.template.post_processors
        post_processors = {entry.name or entry.type for chain in chains for entry in chain}
        for option, words, known, what in (
            ("only", only, set(names), "build"),
            ("except", except_, {*names, *post_processors}, "build or post-processor"),
        ):
            for word in words:
                if word not in known:
                    hint = did_you_mean(word, known) or f"there are {', '.join(sorted(known)) or 'none'}"
                    self.problems.append(Problem(f"-{option}: the template has no {what} '{word}'", None, hint))
        chosen = [(n, entry) for n, entry in names.items() if (not only or n in only) and n not in except_]
        if names and not chosen and not self.problems:
            self.problems.append(Problem("-only and -except leave no build to run"))
        return chosen

    def build(
        self, name: str, entry: Entry, context: BuildContext, names: Collection[str], except_: Collection[str]
    ) -> BuildPlan | None:
        engine = replace(self.engine, build_name=name, builder_type=entry.type)
        mine = replace(context, build_name=name, builder_type=entry.type, renderer=engine)
        planner = Planner(self.template, engine, mine, names)
        plan = planner.plan(entry, except_)
        self.problems += planner.problems
        self.warnings += planner.warnings
        return plan
