"""What the CRM stores."""

import sqlite3
from datetime import UTC, datetime

from sqlalchemy import ForeignKey, String, create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    """Base of all tables."""


class Company(Base):
    """An organisation."""

    __tablename__ = "companies"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(120), unique=True)
    industry: Mapped[str] = mapped_column(String(60))
    country: Mapped[str] = mapped_column(String(2))
    contacts: Mapped[list["Contact"]] = relationship(back_populates="company")


class Contact(Base):
    """A person at a company."""

    __tablename__ = "contacts"

    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"), index=True)
    name: Mapped[str] = mapped_column(String(120), index=True)
    email: Mapped[str] = mapped_column(String(200))
    phone: Mapped[str | None] = mapped_column(String(40))
    company: Mapped[Company] = relationship(back_populates="contacts")


class Deal(Base):
    """A sale in the making."""

    __tablename__ = "deals"

    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"), index=True)
    title: Mapped[str] = mapped_column(String(200))
    stage: Mapped[str] = mapped_column(String(20), index=True)
    amount: Mapped[int]
    weeks_open: Mapped[int]


class Activity(Base):
    """A call, a meeting or a note about a contact."""

    __tablename__ = "activities"

    id: Mapped[int] = mapped_column(primary_key=True)
    contact_id: Mapped[int] = mapped_column(ForeignKey("contacts.id"), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    note: Mapped[str] = mapped_column(String(500))
    happened_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))


STAGES = ("lead", "qualified", "offer", "won", "lost")
KINDS = ("call", "meeting", "note", "email")


def open_database(path: str) -> Engine:
    """The database in the file `path`, filled when it is new."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        if session.query(Company).first() is None:
            fill(session)
    return engine


FIRST_NAMES = [
    "Amara",
    "Beatriz",
    "Chen",
    "Dmitri",
    "Elif",
    "Fatima",
    "Georg",
    "Hana",
    "Ivo",
    "Jin",
    "Kofi",
    "Leila",
    "Mateo",
    "Nadia",
    "Omar",
    "Priya",
    "Quentin",
    "Rosa",
    "Sven",
    "Tara",
    "Umar",
    "Vera",
    "Wei",
    "Ximena",
    "Yusuf",
    "Zoe",
]
LAST_NAMES = [
    "Adeyemi",
    "Becker",
    "Castillo",
    "Dubois",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kim",
    "Lindqvist",
    "Moreau",
]
INDUSTRIES = ("logistics", "retail", "software", "health", "energy", "finance")
PLACES = ("DE", "FR", "NG", "KR", "SE", "ES", "CL", "IN")
NOUNS = ["Harbour", "Meadow", "Summit", "Copper", "Willow", "Beacon", "Quarry", "Lantern", "Orchard", "Falcon"]
ENDINGS = ["Works", "Group", "Partners", "Labs"]


def fill(session: Session) -> None:
    """Forty companies, four hundred contacts, a hundred and twenty deals; the same every time."""
    companies = [
        Company(
            name=f"{noun} {ending}",
            industry=INDUSTRIES[(i + j) % len(INDUSTRIES)],
            country=PLACES[(i * 3 + j) % len(PLACES)],
        )
        for i, noun in enumerate(NOUNS)
        for j, ending in enumerate(ENDINGS)
    ]
    session.add_all(companies)
    session.flush()
    for n in range(400):
        first, last = FIRST_NAMES[n % len(FIRST_NAMES)], LAST_NAMES[n * 7 % len(LAST_NAMES)]
        company = companies[n * 11 % len(companies)]
        domain = company.name.lower().replace(" ", "-")
        session.add(
            Contact(
                company_id=company.id,
                name=f"{first} {last}",
                email=f"{first}.{last}.{n}@{domain}.example".lower(),
                phone=f"+49 30 5550 {n:04d}" if n % 3 else None,
            )
        )
    for n in range(120):
        company = companies[n * 13 % len(companies)]
        stage = STAGES[n % len(STAGES)]
        session.add(
            Deal(
                company_id=company.id,
                title=f"{company.name}: order {n + 1}",
                stage=stage,
                amount=1000 + n * 370 % 90_000,
                weeks_open=n % 6,
            )
        )
    session.commit()
