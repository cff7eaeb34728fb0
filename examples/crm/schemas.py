"""What goes over the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", max_length=200)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120)]


class Out(BaseModel):
    """Read from a row."""

    model_config = ConfigDict(from_attributes=True)
    id: int


class CompanyIn(BaseModel):
    name: Name
    industry: Name = "software"
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] = "DE"


class CompanyOut(Out, CompanyIn):
    pass


class ContactIn(BaseModel):
    company_id: int
    name: Name
    email: Email
    phone: Annotated[str | None, Field(max_length=40)] = None


class ContactChange(BaseModel):
    name: Name | None = None
    email: Email | None = None
    phone: Annotated[str | None, Field(max_length=40)] = None


class ContactOut(Out, ContactIn):
    pass


class DealIn(BaseModel):
    company_id: int
    title: Annotated[str, Field(min_length=1, max_length=200)]
    stage: Literal["lead", "qualified", "offer", "won", "lost"] = "lead"
    amount: Annotated[int, Field(ge=0, le=100_000_000)]
    weeks_open: Annotated[int, Field(ge=0)] = 0


class DealChange(BaseModel):
    stage: Literal["lead", "qualified", "offer", "won", "lost"] | None = None
    amount: Annotated[int | None, Field(ge=0, le=100_000_000)] = None


class DealOut(Out, DealIn):
    pass


class ActivityIn(BaseModel):
    contact_id: int
    kind: Literal["call", "meeting", "note", "email"]
    note: Annotated[str, Field(min_length=1, max_length=500)]


class ActivityOut(Out, ActivityIn):
    happened_at: datetime


class Login(BaseModel):
    name: str
    password: str
    client: str | None = None
