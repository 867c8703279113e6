"""``authz init``: a site's answers, and the deployment that is made of them and of deploy/.

A platform is a function from `Answers` to a `Plan`: files, most of them those of deploy/ with the
site's values in them, and the commands that come next. Nothing is on disk before `Plan.write`;
`authz.init.checks` looks at what is.
"""

from authz.init.answers import Answers, Durability, Platform
from authz.init.plan import Plan
from authz.init.platforms import plan

__all__ = ["Answers", "Durability", "Plan", "Platform", "plan"]
