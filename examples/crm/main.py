"""The API: `uvicorn crm.main:app`. `CRM_DATABASE` names the database file; without it the data are gone at the end."""

import csv
import io
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from . import schemas
from .access import ACCOUNTS, check_password, issue_token, may
from .models import Activity, Base, Company, Contact, Deal, open_database

Row = TypeVar("Row", bound=Base)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="crm-") as folder:
        app.state.engine = open_database(os.environ.get("CRM_DATABASE") or f"{folder}/crm.sqlite")
        yield
        app.state.engine.dispose()


app = FastAPI(title="CRM", version="2", lifespan=lifespan)
api = APIRouter(prefix="/v2")


def database(request: Request) -> Iterator[Session]:
    """A session for one call."""
    with Session(request.app.state.engine) as session:
        yield session


Database = Annotated[Session, Depends(database)]
Page = Annotated[int, Query(ge=1, le=10_000)]
PageSize = Annotated[int, Query(ge=1, le=200)]
READ, WRITE, DELETE = Depends(may("read")), Depends(may("write")), Depends(may("delete"))
EXPORT, REPORT = Depends(may("export")), Depends(may("report"))


def one(session: Session, kind: type[Row], id_: int) -> Row:
    """The row with this id; 404 when there is none."""
    row = session.get(kind, id_)
    if row is None:
        raise HTTPException(404, f"no {kind.__name__.lower()} {id_}")
    return row


def page_of(session: Session, kind: type[Row], page: int, size: int) -> list[Row]:
    return list(session.scalars(select(kind).order_by(kind.__table__.c.id).limit(size).offset((page - 1) * size)))


def save(session: Session, row: Row) -> Row:
    """The row, stored; 422 when it refers to something that is not there, 409 when it is there already."""
    session.add(row)
    try:
        session.commit()
    except IntegrityError as e:
        status = 409 if "UNIQUE" in str(e.orig) else 422
        raise HTTPException(status, "already there" if status == 409 else "refers to something unknown") from e
    return row


# --- people and programs log in ----------------------------------------------------------------------------------------
@api.post("/login")
def login(body: schemas.Login) -> dict[str, Any]:
    account = check_password(body.name, body.password)
    client = body.client or account.id
    if client not in ACCOUNTS:
        raise HTTPException(401, "unknown client")
    return {"token": issue_token(account.id, client), "token_type": "bearer"}


@api.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


# --- contacts ----------------------------------------------------------------------------------------------------------
@api.get("/contacts", dependencies=[READ], response_model=list[schemas.ContactOut])
def list_contacts(session: Database, page: Page = 1, size: PageSize = 25) -> list[Contact]:
    return page_of(session, Contact, page, size)


@api.get("/contacts/search", dependencies=[READ], response_model=list[schemas.ContactOut])
def search_contacts(session: Database, q: Annotated[str, Query(min_length=2, max_length=100)]) -> list[Contact]:
    found = select(Contact).where(or_(Contact.name.icontains(q, autoescape=True), Contact.email.icontains(q)))
    return list(session.scalars(found.order_by(Contact.name).limit(50)))


@api.get("/contacts/export", dependencies=[EXPORT])
def export_contacts(session: Database) -> Response:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "name", "email", "phone", "company"])
    for contact in session.scalars(select(Contact).order_by(Contact.id)):
        writer.writerow([contact.id, contact.name, contact.email, contact.phone, contact.company.name])
    return Response(out.getvalue(), media_type="text/csv")


@api.post("/contacts", status_code=201, dependencies=[WRITE], response_model=schemas.ContactOut)
def create_contact(session: Database, body: schemas.ContactIn) -> Contact:
    return save(session, Contact(**body.model_dump()))


@api.get("/contacts/{contact_id}", dependencies=[READ], response_model=schemas.ContactOut)
def read_contact(session: Database, contact_id: int) -> Contact:
    return one(session, Contact, contact_id)


@api.patch("/contacts/{contact_id}", dependencies=[WRITE], response_model=schemas.ContactOut)
def update_contact(session: Database, contact_id: int, body: schemas.ContactChange) -> Contact:
    contact = one(session, Contact, contact_id)
    for name, value in body.model_dump(exclude_unset=True).items():
        setattr(contact, name, value)
    return save(session, contact)


@api.delete("/contacts/{contact_id}", status_code=204, dependencies=[DELETE])
def delete_contact(session: Database, contact_id: int) -> None:
    contact = one(session, Contact, contact_id)
    for activity in session.scalars(select(Activity).where(Activity.contact_id == contact_id)):
        session.delete(activity)
    session.flush()
    session.delete(contact)
    session.commit()


# --- companies ---------------------------------------------------------------------------------------------------------
@api.get("/companies", dependencies=[READ], response_model=list[schemas.CompanyOut])
def list_companies(session: Database, page: Page = 1, size: PageSize = 25) -> list[Company]:
    return page_of(session, Company, page, size)


@api.post("/companies", status_code=201, dependencies=[WRITE], response_model=schemas.CompanyOut)
def create_company(session: Database, body: schemas.CompanyIn) -> Company:
    return save(session, Company(**body.model_dump()))


@api.get("/companies/{company_id}", dependencies=[READ], response_model=schemas.CompanyOut)
def read_company(session: Database, company_id: int) -> Company:
    return one(session, Company, company_id)


@api.put("/companies/{company_id}", dependencies=[WRITE], response_model=schemas.CompanyOut)
def update_company(session: Database, company_id: int, body: schemas.CompanyIn) -> Company:
    company = one(session, Company, company_id)
    for name, value in body.model_dump().items():
        setattr(company, name, value)
    return save(session, company)


# --- deals -------------------------------------------------------------------------------------------------------------
@api.get("/deals", dependencies=[READ], response_model=list[schemas.DealOut])
def list_deals(session: Database, page: Page = 1, size: PageSize = 25) -> list[Deal]:
    return page_of(session, Deal, page, size)


@api.post("/deals", status_code=201, dependencies=[WRITE], response_model=schemas.DealOut)
def create_deal(session: Database, body: schemas.DealIn) -> Deal:
    return save(session, Deal(**body.model_dump()))


@api.get("/deals/{deal_id}", dependencies=[READ], response_model=schemas.DealOut)
def read_deal(session: Database, deal_id: int) -> Deal:
    return one(session, Deal, deal_id)


@api.patch("/deals/{deal_id}", dependencies=[WRITE], response_model=schemas.DealOut)
def update_deal(session: Database, deal_id: int, body: schemas.DealChange) -> Deal:
    deal = one(session, Deal, deal_id)
    for name, value in body.model_dump(exclude_unset=True).items():
        setattr(deal, name, value)
    return save(session, deal)


@api.delete("/deals/{deal_id}", status_code=204, dependencies=[DELETE])
def delete_deal(session: Database, deal_id: int) -> None:
    session.delete(one(session, Deal, deal_id))
    session.commit()


@api.get("/deals/{deal_id}/forecast", dependencies=[READ])
def forecast_deal(session: Database, deal_id: int) -> dict[str, float]:
    """What the deal may bring a week; nobody has thought of deals opened this week."""
    deal = one(session, Deal, deal_id)
    return {"weekly": deal.amount / deal.weeks_open}


# --- activities --------------------------------------------------------------------------------------------------------
@api.get("/activities", dependencies=[READ], response_model=list[schemas.ActivityOut])
def list_activities(session: Database, page: Page = 1, size: PageSize = 25) -> list[Activity]:
    return page_of(session, Activity, page, size)


@api.post("/activities", status_code=201, dependencies=[WRITE], response_model=schemas.ActivityOut)
def create_activity(session: Database, body: schemas.ActivityIn) -> Activity:
    return save(session, Activity(**body.model_dump()))


@api.delete("/activities/{activity_id}", status_code=204, dependencies=[DELETE])
def delete_activity(session: Database, activity_id: int) -> None:
    session.delete(one(session, Activity, activity_id))
    session.commit()


# --- reports -----------------------------------------------------------------------------------------------------------
@api.get("/reports/pipeline", dependencies=[REPORT])
def read_pipeline(session: Database) -> list[dict[str, Any]]:
    """Deals by stage and industry. Slow: it asks once for each company, and the disk is far away."""
    totals: dict[tuple[str, str], list[int]] = {}
    for company in session.scalars(select(Company)):
        time.sleep(0.015)
        by_stage = select(Deal.stage, func.count(), func.sum(Deal.amount)).where(Deal.company_id == company.id)
        for stage, count, amount in session.execute(by_stage.group_by(Deal.stage)):
            total = totals.setdefault((stage, company.industry), [0, 0])
            total[0] += count
            total[1] += amount
    return [{"stage": s, "industry": i, "deals": n, "amount": a} for (s, i), (n, a) in sorted(totals.items())]


app.include_router(api)
